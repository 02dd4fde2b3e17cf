"""Networks and training of referring expression segmentation."""
