"""The commands of `bandpo`, a file each; the libraries below know nothing of arguments."""
