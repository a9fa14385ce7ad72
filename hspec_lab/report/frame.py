"""What frames every page: its style, how it prints, and the HTML around its body."""

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1b1f; --dim: #5d5d66; --line: #d9d9e0; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --dim: #a2a2ad; --line: #3a3a42; --page: #16161a; }
}
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: var(--ink);
  background: var(--page); max-width: 1160px; margin: 32px auto 64px; padding: 0 24px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 10px; }
.note, .legend { color: var(--dim); margin: 8px 0; font-size: 13.5px; max-width: 85ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.rows { width: 100%; }
.rows th, .rows td { text-align: right; padding: 5px 12px 5px 0; white-space: nowrap; }
.rows th { font-weight: 600; font-size: 13px; color: var(--dim);
  border-bottom: 1px solid var(--ink);
  vertical-align: bottom; white-space: normal; }
.rows th.text, .rows td.text { text-align: left; }
.rows tr.starts td { border-top: 1px solid var(--line); }
.strip { display: flex; height: 14px; width: 100%; min-width: 200px;
  border-radius: 2px; overflow: hidden; }
.strip i, .legend i { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { width: 12px; height: 12px; border-radius: 2px; }
.conditions th { text-align: left; font-weight: 400; color: var(--dim); padding: 2px 24px 2px 0;
  white-space: nowrap; vertical-align: top; }
.conditions td { padding: 2px 0; overflow-wrap: anywhere; }
.js-plotly-plot text:not(.bartext, .hoverlayer text) { fill: var(--ink) !important; }
pre { font: 13.5px/1.75 ui-monospace, Menlo, Consolas, monospace; }
pre.code { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; margin: 0; }
section { break-inside: avoid; }
section:has(details) { break-inside: auto; }
h2 { break-after: avoid; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--dim); font-size: 13.5px; overflow-wrap: anywhere; }
@page { margin: 12mm; }
@media print {
  :root { color-scheme: light; --ink: #1b1b1f; --dim: #5d5d66; --line: #d9d9e0; --page: #ffffff; }
  body { margin: 0; padding: 0; max-width: none;
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .modebar { display: none; }
  .rows th, .rows td { font-size: 12px; padding-right: 8px; }
  .strip { min-width: 90px; }
  /* as wide as A4 and Letter are, when the script below has made them 920 px */
  section > div:has(.plotly-graph-div) { zoom: 0.74; }
}
"""

# paper is narrower than a screen: figures are laid out anew, or it would cut them off
PRINTING = """
const layOut = (size) => document.querySelectorAll(".js-plotly-plot").forEach(
  (plot) => Plotly.relayout(plot, size));
addEventListener("beforeprint", () => layOut({ width: 920 }));
addEventListener("afterprint", () => layOut({ width: null, autosize: true }));
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style>
<script>{plotly}</script></head>
<body>
{body}
<script>{printing}</script>
<script type="application/json" id="rows">{data}</script>
</body></html>
"""
