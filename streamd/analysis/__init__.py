"""From boxes to answers: which boxes show the same object (`tracking`), what it does at zones and lines (`rules`)."""
