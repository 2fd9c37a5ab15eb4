"""From a LeRobot dataset to training batches."""
