"""What ``precompute-sam`` plans, computes and costs."""
