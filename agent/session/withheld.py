"""What a session would not store for want of consent: said before it begins, with the command that changes it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from sensorium.agent.session.rig import Device
from sensorium.agent.session.rig_fitness import is_of_a_device
from sensorium.drivers.frame import Modality, is_personal_by_default
from sensorium.sync.consent.decisions import decide
from sensorium.sync.consent.grants import ConsentLedger, ConsentStream, Purpose, format_utc
from sensorium.sync.consent.remedy import GrantFolder, how_to_record, last_ended


@dataclass(frozen=True, slots=True)
class ExpectedStream:
    """A stream that a device will have, as far as its driver tells before it is opened."""

    name: str
    modality: Modality
    is_personal: bool = True
    details: Mapping[str, str] = field(default_factory=dict)


def announced(
    devices: Sequence[Device], ledger: ConsentLedger, now_utc_ns: int, folder: GrantFolder, rig: str
) -> tuple[str, ...]:
    """Return sentences on what will not be stored and why, on grants that reach nothing, on cameras called harmless."""
    expected = [stream for device in devices for stream in _expected(device)]
    sentences = [*_called_harmless(devices), *_grants_for_nothing(devices, ledger, now_utc_ns)]
    if ledger.fault and expected:
        return (*sentences, f"nothing personal will be stored: {ledger.fault}")
    if ledger.is_paused and expected:
        sentences.append(_paused(folder))
    withheld = {
        stream.name: (stream, why) for stream in expected if (why := _why(stream, ledger, now_utc_ns))
    }
    sentences += [f"{name} will be WITHHELD: {why}" for name, (_, why) in withheld.items()]
    streams = [stream for stream, _ in withheld.values()]
    return (*sentences, *how_to_record(streams, ledger, now_utc_ns, folder, rig))


def _expected(device: Device) -> Iterator[ExpectedStream]:
    said = device.config.personal
    kinds = [kind for kind in device.driver_type.modalities if is_personal_by_default(kind)]
    if said is not False and (kinds or said):
        yield ExpectedStream(device.name, kinds[0] if kinds else Modality.OTHER)


def _why(stream: ConsentStream, ledger: ConsentLedger, now_utc_ns: int) -> str:
    decision = decide(stream, (now_utc_ns, now_utc_ns), Purpose.RECORD, now_utc_ns, ledger)
    if decision.is_allowed or decision.rule == "paused":
        return ""
    ended = last_ended(stream, ledger, now_utc_ns)
    if decision.rule == "no_grant" and ended is not None:
        return f"grant {ended.id} of {ended.subject} for it ended at {format_utc(ended.valid_until)}"
    return decision.reason if decision.rule != "no_grant" else "no grant covers it"


def _called_harmless(devices: Sequence[Device]) -> Iterator[str]:
    for device in devices:
        kinds = [kind for kind in device.driver_type.modalities if is_personal_by_default(kind)]
        if device.config.personal is False and kinds:
            yield (
                f"{device.name} is recorded and uploaded without consent, {kinds[0].value} though it is: the rig "
                "file says personal: false"
            )


def _grants_for_nothing(devices: Sequence[Device], ledger: ConsentLedger, now_utc_ns: int) -> Iterator[str]:
    """Yield which live grants name a stream that no device of the rig has, such as one that is misspelt."""
    names = [device.name for device in devices]
    for grant in ledger.grants:
        is_live = (
            ledger.status(grant, now_utc_ns).is_valid
            and grant.captured_from_ns <= now_utc_ns < grant.captured_until_ns
        )
        for pattern in grant.scope.streams if is_live else ():
            if not any(sign in pattern for sign in "*?[") and not is_of_a_device(pattern, names):
                near = get_close_matches(pattern, names, n=1, cutoff=0.6)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield f"grant {grant.id} of {grant.subject} names stream {pattern!r}: no device here has one{hint}"


def _paused(folder: GrantFolder) -> str:
    return (
        f"a privacy pause is on: nothing personal is stored until `sensorium resume --spool {folder.spool}`"
    )
