"""One answer to each exercise. Look here after you have tried."""
