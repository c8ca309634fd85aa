"""Training, pruning and measuring: does reality agree with the predicted limit?"""
