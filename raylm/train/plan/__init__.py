"""What a training costs, known before it runs: memory, disk, time. Nothing here needs torch."""
