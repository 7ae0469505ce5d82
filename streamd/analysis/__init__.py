"""Analysis of boxes: which ones show the same object (`tracking`), and what it does at zones and lines (`rules`)."""
