"""The chapters' findings tested on other data of the same kind, which no chapter used."""
