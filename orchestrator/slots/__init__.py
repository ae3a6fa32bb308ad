"""Where a training run happens: reused Tune actors, of one worker or with a group of DDP workers."""
