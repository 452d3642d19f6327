"""Datasets: fetching public ones, and checking a folder for every fault that training would hit."""
