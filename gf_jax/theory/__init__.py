"""Why descent stays near its flow: curvature, bounds, deep linear networks."""
