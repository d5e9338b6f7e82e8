"""A grant in the forms that others read: a Kantara consent receipt 1.1, and a record in W3C DPV JSON-LD.

Exports only: no decision is ever read back from one. What the grant does not say is left empty, not made up; so the
record has fields of ISO/IEC TS 27560, and claims none of its profiles, which ask for more than a grant holds.
"""

from dataclasses import replace
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
from sensorium.sync.consent.particulars import Party
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
    more = grant.particulars
    recipients = ", ".join(party.name for party in more.recipients)
    third_party = bool(recipients) or Purpose.SHARE_THIRD_PARTY in grant.purposes
    given = _given(grant, ledger)
    return {
        "version": KANTARA_VERSION,
        "jurisdiction": grant.jurisdiction,
        "consentTimestamp": (given.at_ns if given else grant.valid_from) // SECOND_NS,
        "collectionMethod": grant.evidence.method,
        "consentReceiptID": grant.id,
        "publicKey": public_key,
        "language": grant.particulars.language,
        "piiPrincipalId": grant.subject,
        "piiControllers": [
            {
                "piiController": grant.controller,
                "contact": grant.particulars.controller.contact,
                "address": grant.particulars.controller.address,
                "email": grant.particulars.controller.email,
                "phone": grant.particulars.controller.phone,
            }
        ],
        "policyUrl": grant.notice,
        "services": [
            {
                "service": more.service or f"recording of {_scope(grant)}",
                "purposes": [
                    {
                        "purpose": purpose.value,
                        "purposeCategory": [],
                        "consentType": _consent_type(grant),
                        "piiCategory": _personal_data(grant),
                        "primaryPurpose": purpose is grant.purposes[0],
                        "termination": _termination(grant),
                        "thirdPartyDisclosure": third_party,
                        "thirdPartyName": recipients,
                    }
                    for purpose in grant.purposes
                ],
            }
        ],
        "sensitive": True,
        "spiCat": list(more.special_categories),
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
        "dpv:hasDataController": _party(replace(grant.particulars.controller, name=grant.controller)),
        "dpv:hasLegalBasis": _BASES[grant.lawful_basis],
        "dpv:hasPurpose": [_purpose(purpose) for purpose in grant.purposes],
        "dpv:hasPersonalData": [
            *_personal_data(grant),
            *(
                {"@type": "dpv:SpecialCategoryPersonalData", "dct:description": what}
                for what in grant.particulars.special_categories
            ),
        ],
        "dpv:hasScope": list(grant.scope.streams),
        "dpv:hasDuration": f"{format_utc(grant.captured_from_ns)}/{format_utc(grant.captured_until_ns)}",
        "dpv:hasConsentStatus": f"dpv:{_state(grant, ledger, now_utc_ns)}",
        "dct:valid": f"{format_utc(grant.valid_from)}/{format_utc(grant.valid_until)}",
        "dpv:hasActivity": [_event(event) for event in ledger.events if event.grant_id == grant.id],
    }
    record |= _where_stated(grant)
    if grant.notice:
        record["dpv:hasNotice"] = grant.notice
    if grant.jurisdiction:
        record["dpv:hasJurisdiction"] = grant.jurisdiction
    storage = _storage(grant)
    if storage:
        record["dpv:hasStorageCondition"] = storage[0] if len(storage) == 1 else storage
    return record


def _storage(grant: ConsentGrant) -> list[dict[str, str]]:
    days = grant.conditions.retain_days
    kept = [] if days is None else [{"@type": "dpv:StorageDuration", "dct:extent": f"P{days}D"}]
    places = grant.particulars.storage_locations
    return kept + [{"@type": "dpv:StorageLocation", "dpv:hasLocation": place} for place in places]


def _where_stated(grant: ConsentGrant) -> dict[str, Any]:
    """Return the fields that the grant states; what it does not say is not there."""
    more = grant.particulars
    stated: dict[str, Any] = {
        "dct:language": more.language,
        "dpv:hasRecipientThirdParty": [_party(party) for party in more.recipients],
        "dpv:hasProcessing": more.processing,
        "dpv:hasService": more.service,
        "dpv:hasConsentControl": {"@type": "dpv:WithdrawConsent", "dct:description": more.withdrawal}
        if more.withdrawal
        else "",
        "dpv:hasRight": more.rights,
        "dpv:hasOrganisationalMeasure": list(more.codes_of_conduct),
        "dpv:hasLocation": list(grant.scope.zones),
        "dpv:hasTechnicalMeasure": [f"redaction of {what}" for what in grant.conditions.redact],
        "dct:provenance": {
            key: value
            for key, value in (
                ("dct:type", grant.evidence.method),
                ("dpv:hasResponsibleEntity", grant.evidence.by),
                ("dct:identifier", grant.evidence.sha256),
                ("dct:description", grant.evidence.note),
            )
            if value
        },
    }
    return {key: value for key, value in stated.items() if value}


def _party(party: Party) -> str | dict[str, str]:
    """Return a party with what is known of it; its name alone where that is all."""
    stated = {
        "dpv:hasName": party.name,
        "dpv:hasIdentifier": party.id,
        "dct:type": party.kind,
        "dpv:hasAddress": party.address,
        "dpv:hasContact": ", ".join(filter(None, (party.contact, party.email, party.phone, party.url))),
    }
    known = {key: value for key, value in stated.items() if value}
    return party.name if set(known) <= {"dpv:hasName"} else {"@type": "dpv:LegalEntity", **known}


def _personal_data(grant: ConsentGrant) -> list[str]:
    in_words = list(grant.particulars.personal_data)
    return in_words or [modality.value for modality in grant.scope.modalities] or ["every sensor in scope"]


def _scope(grant: ConsentGrant) -> str:
    zones = f" in {', '.join(grant.scope.zones)}" if grant.scope.zones else ""
    return f"{', '.join(grant.scope.streams)}{zones}"


def _termination(grant: ConsentGrant) -> str:
    kept = grant.conditions.retain_days
    said = f"at {format_utc(grant.valid_until)}, or when it is withdrawn"
    said += f" ({grant.particulars.withdrawal})" if grant.particulars.withdrawal else ""
    return said if kept is None else f"{said}; nothing is kept longer than {kept} days"


def _state(grant: ConsentGrant, ledger: ConsentLedger, now_utc_ns: int) -> str:
    status = ledger.status(grant, now_utc_ns)
    return (ConsentStatus.UNKNOWN if ledger.fault and status.is_valid else status).value


def _given(grant: ConsentGrant, ledger: ConsentLedger) -> ConsentEvent | None:
    given = (e for e in ledger.events if e.grant_id == grant.id and e.kind is EventKind.GIVEN)
    return next(given, None)


def _consent_type(grant: ConsentGrant) -> str:
    is_explicit = grant.particulars.is_explicit or grant.lawful_basis is LawfulBasis.EXPLICIT_CONSENT
    return "EXPLICIT" if is_explicit else grant.lawful_basis.value.upper()


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
