"""A grant in the forms that others read: a Kantara consent receipt 1.1, and a record in W3C DPV JSON-LD.

Exports only: no decision is ever read back from one. What the grant does not say is left empty, not made up; so the
record has fields of ISO/IEC TS 27560, and claims none of its profiles, which ask for more than a grant holds.
"""

from typing import Any

from sensorium.sync.consent.grants import (
    ConsentEvent,
    ConsentGrant,
    ConsentLedger,
    ConsentStatus,
    EventKind,
    LawfulBasis,
    Purpose,
    format_utc,
)
from sensorium.timebase import SECOND_NS

KANTARA_VERSION = "KI-CR-v1.1.0"
_DPV = "https://w3id.org/dpv#"
_OWN_PURPOSE = "urn:sensorium:purpose:"
_RESEARCH = frozenset({Purpose.AI_TRAIN, Purpose.AI_EVAL})
_BASES = {
    LawfulBasis.CONSENT: "dpv:Consent",
    LawfulBasis.EXPLICIT_CONSENT: "dpv:ExplicitlyExpressedConsent",
    LawfulBasis.CONTRACT: "dpv:Contract",
    LawfulBasis.LEGITIMATE_INTEREST: "dpv:LegitimateInterest",
}


def kantara_receipt(grant: ConsentGrant, ledger: ConsentLedger, public_key: str) -> dict[str, Any]:
    """Return the receipt for the subject; ``public_key`` is that of who signed the log, in hex."""
    data = ", ".join(modality.value for modality in grant.scope.modalities) or "every sensor in scope"
    third_party = Purpose.SHARE_THIRD_PARTY in grant.purposes
    given = _given(grant, ledger)
    return {
        "version": KANTARA_VERSION,
        "jurisdiction": grant.jurisdiction,
        "consentTimestamp": (given.at_ns if given else grant.valid_from) // SECOND_NS,
        "collectionMethod": grant.evidence.method,
        "consentReceiptID": grant.id,
        "publicKey": public_key,
        "language": "",
        "piiPrincipalId": grant.subject,
        "piiControllers": [
            {"piiController": grant.controller, "contact": "", "address": "", "email": "", "phone": ""}
        ],
        "policyUrl": grant.notice,
        "services": [
            {
                "service": f"recording of {', '.join(grant.scope.streams)}",
                "purposes": [
                    {
                        "purpose": purpose.value,
                        "purposeCategory": [],
                        "consentType": _consent_type(grant),
                        "piiCategory": [data],
                        "primaryPurpose": purpose is grant.purposes[0],
                        "termination": f"at {format_utc(grant.valid_until)}, or when it is withdrawn",
                        "thirdPartyDisclosure": third_party,
                        "thirdPartyName": "",
                    }
                    for purpose in grant.purposes
                ],
            }
        ],
        "sensitive": True,
        "spiCat": [],
    }


def dpv_record(grant: ConsentGrant, ledger: ConsentLedger, now_utc_ns: int) -> dict[str, Any]:
    """Return the consent record with its events and its state now."""
    record: dict[str, Any] = {
        "@context": {
            "dpv": _DPV,
            "dct": "http://purl.org/dc/terms/",
            "skos": "http://www.w3.org/2004/02/skos/core#",
        },
        "@id": f"urn:ulid:{grant.id}",
        "@type": "dpv:ConsentRecord",
        "dct:identifier": grant.id,
        "dpv:hasDataSubject": grant.subject,
        "dpv:hasDataController": grant.controller,
        "dpv:hasLegalBasis": _BASES[grant.lawful_basis],
        "dpv:hasPurpose": [_purpose(purpose) for purpose in grant.purposes],
        "dpv:hasPersonalData": [modality.value for modality in grant.scope.modalities]
        or ["every sensor in scope"],
        "dpv:hasScope": list(grant.scope.streams),
        "dpv:hasConsentStatus": f"dpv:{_state(grant, ledger, now_utc_ns)}",
        "dct:valid": f"{format_utc(grant.valid_from)}/{format_utc(grant.valid_until)}",
        "dpv:hasActivity": [_event(event) for event in ledger.events if event.grant_id == grant.id],
    }
    if grant.notice:
        record["dpv:hasNotice"] = grant.notice
    if grant.jurisdiction:
        record["dpv:hasJurisdiction"] = grant.jurisdiction
    if grant.conditions.retain_days is not None:
        record["dpv:hasStorageCondition"] = {
            "@type": "dpv:StorageDuration",
            "dct:extent": f"P{grant.conditions.retain_days}D",
        }
    return record


def _state(grant: ConsentGrant, ledger: ConsentLedger, now_utc_ns: int) -> str:
    status = ledger.status(grant, now_utc_ns)
    return (ConsentStatus.UNKNOWN if ledger.fault and status.is_valid else status).value


def _given(grant: ConsentGrant, ledger: ConsentLedger) -> ConsentEvent | None:
    given = (e for e in ledger.events if e.grant_id == grant.id and e.kind is EventKind.GIVEN)
    return next(given, None)


def _consent_type(grant: ConsentGrant) -> str:
    return (
        "EXPLICIT" if grant.lawful_basis is LawfulBasis.EXPLICIT_CONSENT else grant.lawful_basis.value.upper()
    )


def _purpose(purpose: Purpose) -> dict[str, Any]:
    found: dict[str, Any] = {"@id": f"{_OWN_PURPOSE}{purpose.value}", "@type": "dpv:Purpose"}
    if purpose in _RESEARCH:
        found["skos:broader"] = "dpv:ResearchAndDevelopment"
    return found


def _event(event: ConsentEvent) -> dict[str, str]:
    return {
        "dct:type": event.kind.value,
        "dct:date": format_utc(event.at_ns),
        "dpv:hasResponsibleEntity": event.by,
    }
