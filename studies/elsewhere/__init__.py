"""Whether what the chapters found holds on other data of the same kind, which no chapter used."""
