"""gamma_calib: images in, INT8 ranges out. Empty until the INT8 issue; the name is reserved in the wheel."""
