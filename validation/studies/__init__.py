"""The studies of the validation, one folder each."""
