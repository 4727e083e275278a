"""HTML reports: the page, and the report of a run; `lab` has that of a comparison."""
