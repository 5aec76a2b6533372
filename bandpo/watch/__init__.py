"""`bandpo watch`: a page of all runs of a folder, which only reads them."""
