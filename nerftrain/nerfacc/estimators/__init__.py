"""What finds the samples along rays that are worth rendering."""
