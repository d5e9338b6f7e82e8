"""Numeric streams as CSV (RFC 4180): one file per stream, names and units in its first line."""

import csv
from collections.abc import Mapping

from sensorium.agent.exporting.exporter import Exporter, ExportJob
from sensorium.agent.exporting.numeric import holds_numbers, table_batches, table_columns
from sensorium.drivers.frame import StreamInfo


class CsvExporter(Exporter):
    """Numbers are written so that they read back as the same doubles; what is none is ``nan``."""

    def holds(self, info: StreamInfo) -> bool:
        return holds_numbers(info)

    def write(self, job: ExportJob) -> Mapping[str, int]:
        return {info.name: _write_stream(job, info) for info in job.streams}


def _write_stream(job: ExportJob, info: StreamInfo) -> int:
    rows = 0
    with (job.folder / f"{info.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(column.label for column in table_columns(info))
        for batch in table_batches(job, info):
            writer.writerows(zip(*(values.tolist() for values in batch), strict=True))
            rows += len(batch[0])
    return rows
