"""pix2pix: paired translation (Isola et al., CVPR 2017), with losses for pairs that are misaligned."""
