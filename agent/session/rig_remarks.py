"""What of a right rig file will not come to what its author means: another rig's calibration, a clock nobody serves."""

from collections.abc import Iterator
from pathlib import Path

from sensorium.agent.session.rig import Rig
from sensorium.agent.session.rig_fitness import is_of_a_device


def remarks(rig: Rig) -> Iterator[str]:
    """Yield sentences that whoever records should know before; nothing is refused for them."""
    if rig.document.calibration is not None:
        yield from _about_calibration(rig, rig.document.calibration)
    ptp = rig.document.clocks.ptp
    if ptp is not None:
        yield from _about_ptp(ptp.socket)


def _about_calibration(rig: Rig, path: Path) -> Iterator[str]:
    from sensorium.calibration.rig_document import RigCalibration

    calibration = RigCalibration.load(path)
    names = [device.name for device in rig.devices]
    frames = {frame for edge in calibration.edges for frame in (edge.parent, edge.child)}
    frames |= {*calibration.cameras, *calibration.imus, *calibration.force_torque, *calibration.microphones}
    if frames and not any(is_of_a_device(frame, names) for frame in frames):
        yield (
            f"calibration {path} knows {', '.join(sorted(frames)[:8])} and none of the devices {', '.join(names)}: "
            "it is of another rig; nothing is checked against it until devices and frames have the same names"
        )
    for device in rig.devices:
        camera = calibration.cameras.get(device.name)
        size = getattr(device.config, "size", None)
        if camera is not None and size is not None and tuple(size) != (camera.width, camera.height):
            yield (
                f"{device.name} is asked for {size[0]}x{size[1]} and its calibration {path} is of "
                f"{camera.width}x{camera.height}: write size: [{camera.width}, {camera.height}], or calibrate it anew"
            )


def _about_ptp(socket: Path | None) -> Iterator[str]:
    from sensorium.sync.clocks.ptp_management import SOCKETS

    if socket is None and not any(path.exists() for path in SOCKETS):
        yield (
            "clocks.ptp asks for ptp4l, and none runs here: start it (sudo systemctl start ptp4l), name its socket "
            "(clocks: {ptp: {socket: PATH}}), or remove the key"
        )
    elif socket is not None and not socket.exists():
        yield f"clocks.ptp.socket: {socket} does not exist: start ptp4l, or correct the path"
