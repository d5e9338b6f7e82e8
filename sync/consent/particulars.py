"""What a consent record says beside the permission: fields of ISO/IEC TS 27560 that no decision rests on.

They are written down with the grant, signed with it, and go into the receipt and the export.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Party:
    """Who answers for the data, or receives it.

    Attributes:
        id: How it is known elsewhere: a register's number, a URL.
        kind: ``controller``, ``joint controller``, ``processor``, ``authority`` ...
        contact: Whom to ask for: a person or a role.
    """

    name: str = ""
    id: str = ""
    kind: str = ""
    address: str = ""
    contact: str = ""
    email: str = ""
    phone: str = ""
    url: str = ""

    __pydantic_config__: ClassVar[Any] = _FORBID


@dataclass(frozen=True, slots=True)
class Particulars:
    """The rest of the record.

    Attributes:
        language: Of the notice, as BCP 47: ``de``, ``pt-BR``.
        is_explicit: The subject said yes to this and nothing else, in so many words.
        controller: More of the grant's controller than its name.
        recipients: Third parties that the data goes to.
        personal_data: Kinds of data in the subject's words: ``face``, ``voice``, ``licence plate``.
        special_categories: Those among them that the law protects more, such as ``biometric``.
        storage_locations: Where the data is kept: a country, a site, a store.
        processing: What is done with it, in words.
        service: For what it is recorded, as the subject knows it.
        withdrawal: How to withdraw: an address, a page, a desk.
        rights: Where the subject reads about his rights.
        codes_of_conduct: Rules that the controller keeps to.
    """

    language: str = ""
    is_explicit: bool = False
    controller: Party = Party()
    recipients: tuple[Party, ...] = ()
    personal_data: tuple[str, ...] = ()
    special_categories: tuple[str, ...] = ()
    storage_locations: tuple[str, ...] = ()
    processing: str = ""
    service: str = ""
    withdrawal: str = ""
    rights: str = ""
    codes_of_conduct: tuple[str, ...] = ()

    __pydantic_config__: ClassVar[Any] = _FORBID


NONE_STATED = Particulars()

PARTICULAR_KEYS = tuple(field.name for kind in (Particulars, Party) for field in fields(kind))
