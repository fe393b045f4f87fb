"""Very many images -> codes: shards of images, each encoded into one named, checksummed file by whichever worker."""
