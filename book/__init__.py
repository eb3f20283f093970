"""The book: its pages, the results they show (`results`), its tools, and what the chapters share (`workbook`)."""
