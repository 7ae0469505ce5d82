"""The flight recorder: keeps the most recent history in memory and writes it as one bundle when something fails."""
