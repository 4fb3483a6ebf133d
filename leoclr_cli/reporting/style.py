"""Style sheet of a report, light or dark as the reader's system is. No font or script is fetched."""

from __future__ import annotations

from leoclr.cli.reporting.markup import Html

# Run colours are Okabe and Ito's, apart for the colour-blind too; lighter on dark ground.
_LIGHT_RUNS = ("#0072b2", "#d55e00", "#00875a", "#a8327e", "#8a6d00", "#4b4bc8", "#5c6670", "#00798c")
_DARK_RUNS = ("#56b4e9", "#ff8c42", "#3ecf9b", "#e88cc8", "#e8c547", "#a5a5ff", "#aab4be", "#4fd1e0")
_CLASSES = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#9d86d9", "#8c6d46",
)  # fmt: skip

_RULES = """
:root { color-scheme: light dark; --ground: #f6f7f9; --panel: #fff; --ink: #1d2329; --quiet: #5d6771;
  --line: #dfe3e8; --soft: #eef2f7; --warn: #fff6df; --warn-line: #e0b34c; --mark: #fff3c9; RUNS-LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #12161a; --panel: #1a2026; --ink: #e6eaee; --quiet: #98a3ae;
  --line: #2e363f; --soft: #222a32; --warn: #2f2814; --warn-line: #8d6f26; --mark: #3a3115; RUNS-DARK } }
* { box-sizing: border-box }
html { scroll-behavior: smooth; scroll-padding-top: 3.6rem }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 0 1.25rem 4rem }
header { max-width: 1180px; margin: 0 auto; padding: 2.6rem 1.25rem .8rem }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .3rem }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 2.8rem 0 .9rem }
h3 { font-size: 1rem; margin: 0 0 .7rem }
p { margin: .4rem 0 .8rem; max-width: 75ch }
.quiet, figcaption, .lead { color: var(--quiet) }
nav { position: sticky; top: 0; z-index: 2; background: var(--ground); border-bottom: 1px solid var(--line) }
nav div { max-width: 1180px; margin: 0 auto; padding: .55rem 1.25rem; display: flex; gap: 1.3rem; overflow-x: auto }
nav a { color: var(--quiet); text-decoration: none; white-space: nowrap; font-size: .92rem }
nav a:hover, nav a:focus { color: var(--ink); text-decoration: underline }
.card, .run, .chart, .picture { background: var(--panel); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.25rem; margin: 0 0 1rem }
.run { border-top: 4px solid var(--own) }
.runs, .charts, .maps { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)) }
.runs > *, .charts > *, .maps > * { margin: 0; min-width: 0 }
.run h3 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem 1.7rem; margin: .9rem 0 .1rem }
.tile b { display: block; font-size: 1.5rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums }
.tile span { color: var(--quiet); font-size: .84rem }
.chip { white-space: nowrap; margin-right: .8rem } .swatch { display: inline-block; width: .72em; height: .72em;
  border-radius: 3px; margin-right: .45em }
.single { max-width: 590px }
.chart figcaption { font-weight: 600; color: var(--ink); margin: 0 0 .4rem }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--quiet); font-variant-numeric: tabular-nums }
.grid { stroke: var(--line) } .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.strip > rect { fill: transparent } .tip { opacity: 0; pointer-events: none } .strip:hover .tip { opacity: 1 }
.tip .rule { stroke: var(--quiet); stroke-dasharray: 3 3 } .tip .box { fill: var(--panel); stroke: var(--line) }
.dot { fill: var(--quiet); fill-opacity: .72 } .dot:hover { fill-opacity: 1; stroke: var(--ink); stroke-width: 2 }
svg text.name { font-size: 13px; font-weight: 650; fill: var(--ink); paint-order: stroke; stroke: var(--panel);
  stroke-width: 4px; stroke-linejoin: round; pointer-events: none }
.picture { margin-bottom: 1rem; overflow-x: auto } .picture img { display: block; max-width: 100%; height: auto;
  border-radius: 8px }
.picture img.whole { background: #fff }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  font-weight: 400 }
thead th { color: var(--quiet); font-size: .84rem } td code, th code { overflow-wrap: anywhere }
.scores td { font-variant-numeric: tabular-nums } .differs td:not(:last-child) code { background: var(--mark);
  border-radius: 4px; padding: .08em .35em }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace }
details { margin: .8rem 0 .2rem } summary { cursor: pointer; color: var(--quiet) } details ul { margin: .4rem 0 }
.notice { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 6px; padding: .55rem .9rem;
  max-width: none; overflow-wrap: anywhere }
footer { color: var(--quiet); font-size: .88rem; margin-top: 3rem }
@media print { nav { display: none } body { background: #fff } .card, .chart, .picture { break-inside: avoid } }
"""


def style_sheet() -> Html:
    """The rules, with a class for each colour of a run and of a class of images."""
    light, dark = (
        " ".join(f"--run{number}: {colour};" for number, colour in enumerate(colours))
        for colours in (_LIGHT_RUNS, _DARK_RUNS)
    )
    runs = "".join(
        f".stroke{n} {{ stroke: var(--run{n}) }} .fill{n} {{ fill: var(--run{n}) }}\n"
        f".bg{n} {{ background: var(--run{n}) }}\n"
        f"svg text.ink{n} {{ fill: var(--run{n}) }} .own{n} {{ --own: var(--run{n}) }}\n"
        for n in range(MOST_RUNS)
    )
    classes = "".join(f".dot.class{number} {{ fill: {colour} }}\n" for number, colour in enumerate(_CLASSES))
    return Html(_RULES.replace("RUNS-LIGHT", light).replace("RUNS-DARK", dark) + runs + classes)


MOST_RUNS = len(_LIGHT_RUNS)
