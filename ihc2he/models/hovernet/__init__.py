"""HoVer-Net for the segmentation and classification of nuclei."""
