"""What only makes local models faster, behind the option `speedups`; the scores stay."""
