"""The look of the page: one column, system fonts, light or dark as the reader's system is; figures stay on white."""

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --muted: #5f6368; --line: #dadce0; --tint: #f5f6f7;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e6e6; --muted: #a0a5ab; --line: #3a3e44;
  --tint: #202327; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; }
.kind { color: var(--muted); margin: 0 0 1rem; }
.headline { background: var(--tint); border-left: 3px solid var(--link); padding: .7rem 1rem; margin: 1.2rem 0; }
.headline p { margin: .25rem 0; }
.none, .note, figcaption { color: var(--muted); font-size: .9rem; }
a { color: var(--link); }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--tint); padding: .8rem 1rem; overflow-x: auto; margin: .6rem 0; }
figure { margin: 1rem 0; max-width: 46rem; }
figure svg { display: block; width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 4px; padding: .5rem; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }
th, td { padding: .32rem .42rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; white-space: normal; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
.word { text-align: left; }
tbody tr + tr td { border-top: 1px solid var(--line); }
td .reason { display: block; color: var(--muted); font-size: .85em; min-width: 11rem; max-width: 18rem;
  white-space: normal; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--link); }
@media print { main { max-width: none; } details > * { display: block; } figure { break-inside: avoid; } }
"""
