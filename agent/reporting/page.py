"""The report's HTML: escaping, tables, badges, and the style sheet. No file beside the page is needed."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from sensorium.agent.reporting.pictures import Picture
from sensorium.drivers.frame import Modality
from sensorium.verdict import Verdict

_GOOD = ("ok", "verified", "allow", "allowed")
_BAD = ("failed", "deny", "denied")
_WARN = ("suspect", "insufficient", "pending", "not uploaded", "waiting", "partly denied", "incomplete")


def text(value: object) -> str:
    """Return a value as escaped text; None is empty."""
    return "" if value is None else escape(str(value))


_ULID = re.compile(r"\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b")


def prose(value: object) -> str:
    """Return a value as escaped text whose ids stay in one piece, however narrow the page is."""
    return _ULID.sub(lambda found: f'<code class="ulid">{found[0]}</code>', text(value))


_UNITS = {"1": "", "deg": "°", "us": "µs", "degC": "°C", "uT": "µT", "Ohm": "Ω"}


def unit(name: object) -> str:
    """Return a unit as people write it; \"\" for plain numbers. Plain text, not escaped."""
    told = str(name or "")
    for plain, spelled in (("^2", "²"), ("^3", "³"), ("*", "·")):
        told = told.replace(plain, spelled)
    return _UNITS.get(told, told)


def number(value: object, digits: int = 0) -> str:
    """Return a number with thin spaces between thousands; empty for None."""
    if not isinstance(value, int | float):
        return text(value)
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def badge(status: object) -> str:
    """Return a coloured word for a status."""
    word = str(status)
    kind = "good" if word in _GOOD else "bad" if word in _BAD else "warn" if word in _WARN else "plain"
    return f'<span class="badge {kind}">{text(word)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already; columns in ``numbers`` are right-aligned."""
    kinds = [' class="n"' if index in numbers else "" for index in range(len(head))]
    lines = ["<tr>" + "".join(f"<th{k}>{name}</th>" for k, name in zip(kinds, head, strict=True)) + "</tr>"]
    for row in rows:
        lines.append(
            "<tr>" + "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kinds, row, strict=True)) + "</tr>"
        )
    return wide(f"<table>{''.join(lines)}</table>")


def wide(content: str) -> str:
    """Return what may be wider than the page: it scrolls, shows that it does, and by the keyboard, too."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def section(name: str, title: str, body: str, lead: str = "") -> str:
    """Return a section of the page, or nothing when it has no body."""
    if not body:
        return ""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{text(title)}</h2>{intro}{body}</section>'


def verdicts(found: Iterable[Verdict]) -> str:
    """Return the section of those verdicts that have something to say; "" where none has."""
    rows = [
        [badge(v.status.value), text(v.check), text(v.subject), prose("; ".join(v.reasons))]
        for v in found
        if v.reasons
    ]
    return section("verdicts", "Verdicts", table(["", "check", "of", "why"], rows) if rows else "")


def note(sentence: str) -> str:
    """Return a sentence that stands where a picture or table would."""
    return f'<p class="missing">{prose(sentence)}</p>'


def figure(content: str, title: str, caption: str = "", kind: str = "") -> str:
    """Return a figure around HTML or SVG; ``title`` and ``caption`` are plain text."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><h3>{text(title)}</h3>{content}{below}</figure>'


def image(picture: Picture, what: str) -> str:
    return f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{text(what)}">'


def grid(items: Iterable[str], kind: str) -> str:
    content = "".join(items)
    return f'<div class="grid {kind}">{content}</div>' if content else ""


def items(sentences: Iterable[str]) -> str:
    """Return a list of plain sentences, or nothing without any."""
    content = "".join(f"<li>{prose(sentence)}</li>" for sentence in sentences)
    return f"<ul>{content}</ul>" if content else ""


def page(title: str, body: str) -> str:
    """Return the whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


LANE_COLOURS = {
    Modality.CAMERA: "#3b82f6",
    Modality.DEPTH: "#6366f1",
    Modality.LIDAR: "#0d9488",
    Modality.IMU: "#8b5cf6",
    Modality.AUDIO: "#f59e0b",
    Modality.FORCE: "#ec4899",
    Modality.GNSS: "#65a30d",
    Modality.RADAR: "#0891b2",
    Modality.TACTILE: "#f472b6",
    Modality.JOINTS: "#a855f7",
    Modality.ACTION: "#c026d3",
    Modality.EVENT_CAMERA: "#1d4ed8",
    Modality.CAN: "#78716c",
    Modality.SCALAR: "#84cc16",
    Modality.TEXT: "#475569",
    Modality.OTHER: "#a16207",
}
"""Of the timeline's lanes, by kind of stream."""

_LANES = "".join(
    f":root{{--{kind.value}:{colour}}}rect.{kind.value}{{fill:var(--{kind.value})}}\n"
    for kind, colour in LANE_COLOURS.items()
)

STYLE = (
    _LANES
    + """
:root{color-scheme:light dark;--bg:#f4f5f7;--card:#fff;--ink:#1b2430;--soft:#5d6a7a;--line:#dde2e8;
--rail:#e6eaef;--good:#1a7f4b;--goodbg:#dcf3e5;--warn:#8f5a00;--warnbg:#fdefcf;--bad:#b3261e;--badbg:#fbe0de;
--plainbg:#e9edf2;--accent:#2563eb;--shade:#0004;--lost:#dc2626;--gap:#fca5a5;--amber:#f59e0b}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e4e9ef;--soft:#95a2b3;--line:#2e3743;
--rail:#29313c;--good:#5fd394;--goodbg:#173a28;--warn:#f4c261;--warnbg:#40310f;--bad:#ff8f87;--badbg:#4a1e1c;
--plainbg:#2b3440;--accent:#7aa7ff;--shade:#000a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1220px;margin:0 auto;padding:28px 20px 60px}
header{display:flex;flex-wrap:wrap;gap:6px 18px;align-items:baseline;margin-bottom:16px}
h1{font-size:26px;margin:0;letter-spacing:-.01em}
header .id,code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:var(--soft)}
header .when{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;margin:0 0 16px}
h2{font-size:17px;margin:0 0 10px}h3{font-size:13px;margin:0 0 4px;font-weight:600}
.lead,.missing,figcaption{color:var(--soft);font-size:13px;margin:0 0 10px}
.grid+.missing,.legend+.missing,.missing+.missing{margin-top:12px}
.missing{border:1px dashed var(--line);border-radius:8px;padding:14px;margin:0;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin-bottom:16px}
.card{flex:1 1 150px;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:13px 16px;
font-size:13px;color:var(--soft);overflow-wrap:anywhere}
.card b{display:block;font-size:12px;text-transform:uppercase;letter-spacing:.05em;font-weight:600;margin-bottom:5px}
.card .big{display:block;color:var(--ink);font-size:21px;font-weight:600;line-height:1.3}
.card .badge{margin-bottom:5px;font-size:14px;padding:2px 11px}
.badge{display:inline-block;border-radius:99px;padding:1px 9px;font-weight:600;font-size:12.5px;white-space:nowrap}
.good{color:var(--good);background:var(--goodbg)}.warn{color:var(--warn);background:var(--warnbg)}
.bad{color:var(--bad);background:var(--badbg)}.plain{color:var(--soft);background:var(--plainbg)}
.ulid{white-space:nowrap;overflow-wrap:normal;font-size:11px}
.wide{overflow-x:auto;background:linear-gradient(to right,var(--card) 30%,transparent) 0 0/36px 100% no-repeat local,
linear-gradient(to left,var(--card) 30%,transparent) 100% 0/36px 100% no-repeat local,
linear-gradient(to right,var(--shade),transparent) 0 0/14px 100% no-repeat scroll,
linear-gradient(to left,var(--shade),transparent) 100% 0/14px 100% no-repeat scroll}
.wide::-webkit-scrollbar{height:9px}.wide::-webkit-scrollbar-thumb{background:var(--soft);border-radius:5px}
.wide::-webkit-scrollbar-track{background:var(--rail);border-radius:5px}
audio{display:block;width:100%;max-width:420px;margin-top:6px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{color:var(--soft);font-weight:600;text-align:left;font-size:12px;vertical-align:bottom}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--line)}tr:last-child td{border-bottom:0}
td{vertical-align:top;overflow-wrap:break-word}td:first-child{white-space:nowrap}
td .sub{white-space:normal;min-width:168px}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th.n{white-space:normal}
.sub{display:block;color:var(--soft);font-size:12px;max-width:420px}
.loss{color:var(--bad)}
.grid{display:grid;gap:16px}.three{grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr))}
.two{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
figure{margin:0;min-width:0}figcaption{margin:4px 0 0}
img{display:block;max-width:100%;height:auto;border-radius:6px;background:#000}
.strip{display:grid;grid-template-columns:repeat(3,1fr);gap:10px;max-width:1000px}.strip img{width:100%}
.camera-row+.camera-row,.waves+.waves,table+.grid,.wide+.grid{margin-top:18px}.stack{display:grid;gap:16px;align-content:start}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;color:var(--soft);font-size:12.5px;margin-top:8px}
.legend i{display:inline-block;width:14px;height:9px;border-radius:2px;margin-right:6px}
ul{margin:0;padding-left:20px}li{overflow-wrap:anywhere}
footer{color:var(--soft);font-size:12.5px;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.timeline{min-width:760px}.timeline .lane{font-size:12.5px;fill:var(--ink)}.timeline .note{fill:var(--bad)}
line.tick{stroke:var(--line);stroke-width:1}line.rail{stroke:var(--rail);stroke-width:1}
line.zero{stroke:var(--soft);stroke-dasharray:3 3}
rect.gap{fill:var(--gap)}rect.lost{fill:var(--lost)}rect.withheld{fill:var(--soft)}
rect.denied{fill:var(--badbg);stroke:var(--bad);stroke-dasharray:4 3}
rect.pause{fill:var(--soft);opacity:.25}
g.mark{stroke:var(--accent);fill:var(--accent)}g.ok{stroke:var(--good);fill:var(--good)}
g.suspect,g.insufficient{stroke:var(--amber);fill:var(--amber)}g.failed{stroke:var(--lost);fill:var(--lost)}
g.event{stroke:var(--soft);fill:var(--soft)}.timeline g line{opacity:.45;stroke-dasharray:2 3}
path.clock{fill:var(--ink);stroke:var(--card)}path.event{fill:var(--ink);stroke:var(--card)}
.plot path{fill:none;stroke-linejoin:round}
.plot circle.used{fill:var(--soft)}
.plot circle.unused{fill:var(--bad)}
.plot path.jitter{stroke:var(--soft);stroke-width:2.2;stroke-linecap:round;opacity:.35}
.plot path.bound{fill:var(--amber);opacity:.16}.plot path.boundline{stroke:var(--amber);stroke-width:1.4}
.plot path.error{stroke:var(--accent);stroke-width:1.7}
.wave{stroke-width:1.2;opacity:.85}.one .wave{stroke-width:2}
.w0{stroke:var(--camera)}.w1{stroke:var(--amber)}.w2{stroke:var(--lidar)}
.w3{stroke:var(--force)}.w4{stroke:var(--imu)}.w5{stroke:var(--other)}
i.w0{background:var(--camera)}i.w1{background:var(--amber)}i.w2{background:var(--lidar)}i.w3{background:var(--force)}
i.w4{background:var(--imu)}i.w5{background:var(--other)}
rect.count{fill:var(--lidar)}
@media(max-width:640px){.strip{grid-template-columns:1fr}main{padding:16px 10px 40px}section{padding:14px 12px}
.wide::before{content:"scrolls sideways \\2192";position:sticky;left:0;color:var(--soft);font-size:11.5px}
table{width:max-content;min-width:100%}.sub{max-width:230px}}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--shade:transparent}
body{font-size:11px}main{max-width:none;padding:0}section,.card{break-inside:avoid;border-radius:0}
section:has(tr:nth-child(12)),#cameras,#clocks,#waveforms{break-inside:auto}figure,tr,.camera-row{break-inside:avoid}
.wide{overflow:visible;background:none}.wide::before{content:none}.timeline{min-width:0}audio{display:none}
table{font-size:9.5px;width:100%}th,td{padding:2px 6px 2px 0}.n{white-space:normal}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)
