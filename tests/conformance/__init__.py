"""What gRPC is to be, whatever front serves it and whatever client calls: see README.md beside this file."""
