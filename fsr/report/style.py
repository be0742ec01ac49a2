"""How the report looks on a desk, on a phone and on paper."""

STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --soft: #5a5a5a; --line: #d9d9d9; --accent: #0b5c93; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .2rem; padding-top: .6rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; } .question { color: var(--soft); font-style: italic; margin-top: 0; }
a { color: var(--accent); } nav ol { columns: 18rem; padding-left: 1.3rem; } code { font-size: .9em; }
.scroll { width: fit-content; max-width: 100%; max-height: 85vh; overflow-x: auto; overflow-y: auto;
  border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .32rem .55rem; min-width: 5.2rem;
  border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: #f3f5f7; } tbody tr:nth-child(even) { background: #fafbfc; }
td.long { min-width: 17rem; } td.name { min-width: 8rem; } td.value { white-space: nowrap; }
td.count { min-width: 3rem; }
td.key { position: sticky; left: 0; background: inherit; z-index: 1; } tbody tr { background: #fff; }
tr.group th { position: static; background: #eef2f5; padding-top: .6rem; }
tr.group span, td.missing span { position: sticky; left: .55rem; }
.ci { display: block; font-size: .9em; font-weight: normal; color: var(--soft); }
 td.missing { color: #8a8a8a; font-style: italic; }
figure { margin: 1rem 0; } figure img { width: 100%; max-width: 60rem; height: auto; border: 1px solid var(--line); }
figcaption, .notes, .files { color: var(--soft); font-size: .85rem; max-width: 46rem; }
.lead { border-left: 4px solid var(--accent); padding: .1rem 0 .1rem .9rem; }
details { font-size: .85rem; } details ul { padding-left: 1.2rem; }
details li { max-width: none; font-family: monospace; }
@media (max-width: 40rem) { figure { overflow-x: auto; } figure img { width: auto; min-width: 34rem; }
  th, td { padding: .3rem .4rem; min-width: 4rem; } td.name { min-width: 6.5rem; } td.long { min-width: 13rem; } }
@media print { .scroll { overflow: visible; max-height: none; } h2 { break-after: avoid; }
  figure { break-inside: avoid; } }
"""
