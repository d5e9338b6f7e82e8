"""What an episode says about one stream beside its balance."""

import numpy as np

from sensorium.drivers.frame import Modality, StreamInfo, stamps
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.thinking.tally import StreamTally


def test_no_skew_is_told_of_two_frames() -> None:
    info = StreamInfo("lidar", Modality.LIDAR, "points", 10.0, "lidar")
    tally = StreamTally(info, skew_ppm=1.2)
    told = []
    for at_ns in (0, 100, 200):
        stamped = Stamped(np.asarray([at_ns], np.int64), Uncertainty(1.0, 0.0, 0.0), 0)
        tally.add(1, 16, stamps(at_ns), stamped)
        told.append(tally.told_skew_ppm)
    assert told == [None, None, 1.2]
