"""The flight recorder: the last seconds of everything, kept in memory, written as one bundle when something breaks."""
