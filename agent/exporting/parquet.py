"""Numeric streams as Parquet: one file per stream; units in the columns' metadata, the stream's facts in the file's.

It needs pyarrow (the extra ``catalog``), which is imported when an exporter is made.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sensorium.agent.exporting.exporter import Exporter, ExportJob
from sensorium.agent.exporting.numeric import holds_numbers, table_batches, table_columns
from sensorium.drivers.frame import StreamInfo
from sensorium.errors import ConfigError, ExportError
from sensorium.sync.episode.layouts import dump_stream_info


class ParquetExporter(Exporter):
    """Columns keep the device's own number type where it is the physical value already; else they are doubles."""

    def __init__(self) -> None:
        """Import the library.

        Raises:
            ConfigError: If it is not installed.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as err:
            raise ConfigError("Parquet needs the pyarrow library: pip install 'sensorium[catalog]'") from err
        self._arrow: Any = pyarrow

    def holds(self, info: StreamInfo) -> bool:
        return holds_numbers(info)

    def write(self, job: ExportJob) -> Mapping[str, int]:
        try:
            return {info.name: self._write_stream(job, info) for info in job.streams}
        except self._arrow.ArrowException as err:
            raise ExportError(f"{job.episode.path} cannot be written as Parquet: {err}") from err

    def _write_stream(self, job: ExportJob, info: StreamInfo) -> int:
        schema = self._schema(job, info)
        path = job.folder / f"{info.name}.parquet"
        rows = 0
        with self._arrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in table_batches(job, info):
                writer.write_batch(self._arrow.record_batch(list(batch), schema=schema))
                rows += len(batch[0])
        return rows

    def _schema(self, job: ExportJob, info: StreamInfo) -> Any:
        fields = [
            self._arrow.field(
                column.name,
                self._arrow.from_numpy_dtype(np.dtype(column.dtype)),
                nullable=False,
                metadata={"unit": column.unit},
            )
            for column in table_columns(info)
        ]
        facts = {"sensorium.episode": job.manifest.episode_id, "sensorium.stream": dump_stream_info(info)}
        return self._arrow.schema(fields, facts)
