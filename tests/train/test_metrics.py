from pathlib import Path

from raylm.train.metrics import MetricsLog, MetricsTail, read_metrics


def test_a_resumed_log_forgets_steps_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, from_step=0)
    for step in (1, 2, 3):
        log.write(step=step, loss=float(step))
    log.close()
    log = MetricsLog(path, from_step=2)
    log.write(step=3, loss=30.0)
    log.close()
    assert [line["loss"] for line in read_metrics(path)] == [1.0, 2.0, 30.0]


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert [line["step"] for line in read_metrics(path)] == [1]
    assert list(read_metrics(tmp_path / "none")) == []


def test_a_tail_reads_each_line_once_and_anew_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.new() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert tail.new() == [{"step": 1}]
    with path.open("a") as file:
        file.write('0}\n{"step": 3}\n')
    assert tail.new() == [{"step": 20}, {"step": 3}]
    assert tail.new() == []
    MetricsLog(path, from_step=3).close()
    assert tail.new() == [{"step": 1}, {"step": 3}]
