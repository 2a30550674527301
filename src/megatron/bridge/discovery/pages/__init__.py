"""A report as a page: in the terminal, and as HTML."""
