"""nerfacc 0.5.3's public names over this project's ops."""
