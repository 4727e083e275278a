"""Reports as HTML files: the page, and the report of a run; that of a comparison is in `lab`."""
