"""gamma_calib: images in, INT8 ranges out. So far the record of a calibration; the calibrators come with INT8."""
