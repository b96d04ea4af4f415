"""Where metrics go beside metrics.jsonl: TensorBoard always, MLflow and trackio if asked."""
