"""The look of the report: one style sheet for light and dark,
and the little script that shows values under the pointer.
"""

from markupsafe import Markup

CSS = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5b6570; --line: #dfe3e8;
  --grid: #e9ecf0;
  --mark: #fff3cd; --markink: #5c4400; --shadow: 0 1px 2px rgb(20 30 40 / .05);
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5508f; --c4: #c98a00; --c5: #3f9fd8; --c6: #6d55b3;
    --c7: #4d5560;
  --s0: #b9d6ee; --s1: #8fc0e4; --s2: #66a9d9; --s3: #4391c9; --s4: #2779b5; --s5: #12619b; --s6: #084a7d;
    --s7: #04345c; }
@media (prefers-color-scheme: dark) { :root { --bg: #101418; --card: #171c22; --ink: #e6e9ed; --soft: #98a3af;
  --line: #2a323b;
  --grid: #242b33;
  --mark: #43370f; --markink: #ffe39a; --shadow: none;
  --c0: #56b4f0; --c1: #ff8b4d; --c2: #2ec99b; --c3: #e88fc3; --c4: #f0b93a; --c5: #a3d8f7; --c6: #b3a0f0;
    --c7: #b9c2cc;
  --s0: #1d4568; --s1: #235a86; --s2: #2c70a4; --s3: #3b87bf; --s4: #559fd4; --s5: #78b7e3; --s6: #9fcef0;
    --s7: #c9e5f9; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 28px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; letter-spacing: -.005em; }
h2 + div { margin-top: 12px; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; overflow-wrap: anywhere; }
p { margin: 0 0 14px; color: var(--soft); max-width: 78ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  box-shadow: var(--shadow);
  min-width: 0; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr));
  margin-bottom: 16px; }
.three { grid-template-columns: repeat(auto-fit, minmax(min(270px, 100%), 1fr)); }
.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--soft); font-size: 12.5px; vertical-align: bottom; }
th:first-child { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--card); }
td.text, th.text { text-align: left; }
td.wrap { white-space: normal; overflow-wrap: anywhere; max-width: 26em; }
td.wrap .whole { white-space: nowrap; }
td.none { color: var(--soft); }
b.best { font-weight: 700; border-bottom: 2px solid currentColor; }
td.other { background: var(--mark); color: var(--markink); }
small { color: var(--soft); font-size: 12px; font-weight: 400; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.keys { display: flex; flex-wrap: wrap; gap: 6px 18px; position: sticky; top: 0; z-index: 2; background: var(--bg);
  padding: 10px 0;
  margin: 0 0 6px;
  border-bottom: 1px solid var(--line); }
.key { vertical-align: middle; display: inline-flex; align-items: center; gap: 7px; font-size: 13.5px;
  max-width: 100%; }
.key span, .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 32ch;
  display: inline-block;
  vertical-align: bottom; }
.key svg { width: 14px; height: 14px; flex: none; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
svg.chart text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid line { stroke-width: 1; } svg line.grid { stroke: var(--grid); } svg line.axis, svg line.tick {
  stroke: var(--line); }
.series path { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.series circle, .series polygon { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.levels .c0 { --c: var(--s0); } .levels .c1 { --c: var(--s1); } .levels .c2 { --c: var(--s2); } .levels .c3 {
  --c: var(--s3); }
.levels .c4 { --c: var(--s4); } .levels .c5 { --c: var(--s5); } .levels .c6 { --c: var(--s6); } .levels .c7 {
  --c: var(--s7); }
.ramp { display: flex; align-items: center; gap: 8px; font-size: 12.5px; color: var(--soft); margin: 0 0 12px; }
.ramp i { width: 18px; height: 10px; background: var(--c); display: block; } .ramp div { display: flex; gap: 2px; }
figure { margin: 0; } figcaption { font-size: 13px; margin-top: 8px; color: var(--soft); overflow-wrap: anywhere; }
figure img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.strip { display: grid; grid-template-columns: auto 1fr; gap: 6px 12px; align-items: center; font-size: 12.5px;
  color: var(--soft); }
.strip img { width: 100%; max-width: 520px; image-rendering: pixelated; display: block; }
.strip span { text-align: right; font-variant-numeric: tabular-nums; }
.notes { margin: 12px 0 0; padding: 0 0 0 18px; color: var(--soft); font-size: 13.5px; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; padding: 4px 0; }
#tip { position: fixed; pointer-events: none; background: var(--card); color: var(--ink); border: 1px solid var(--line);
  border-radius: 6px;
  padding: 6px 9px; font-size: 12px; box-shadow: 0 4px 14px rgb(0 0 0 / .16); z-index: 5; display: none;
  font-variant-numeric: tabular-nums; }
#tip div { display: flex; justify-content: space-between; gap: 14px; } #tip i { font-style: normal;
  color: var(--soft); }
#tip u { text-decoration: none; color: var(--c); }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) { main { padding: 22px 14px 48px; } h1 { font-size: 22px; } th, td { padding: 7px 10px;
  } .card { padding: 12px; }
  .scroll { padding: 0; } .keys { position: static; } th:first-child .name { max-width: 16ch; } }
@media print { .keys { position: static; } .card { break-inside: avoid; } }
"""

# Under the pointer: of each curve the point that is nearest across, found in what svg.py wrote into data-points.
JS = """
const tip = document.body.appendChild(Object.assign(document.createElement('div'), { id: 'tip' }));
for (const chart of document.querySelectorAll('svg.chart')) {
  const series = [...chart.querySelectorAll('.series')].map(g => ({ name: g.dataset.name, colour: g.classList[1],
    points: g.dataset.points.split(';').map(p => p.split(',')) }));
  chart.addEventListener('pointermove', event => {
    const box = chart.getBoundingClientRect(), x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const near = series.map(s => ({ ...s, at: s.points.reduce((a,
      b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a) }));
    tip.replaceChildren(...near.map(s => {
      const row = document.createElement('div'), name = document.createElement('u');
      const value = document.createElement('span');
      const where = document.createElement('i');
      name.textContent = s.name; row.className = s.colour; value.textContent = s.at[3] + ' ';
        where.textContent = 'at ' + s.at[2];
      value.append(where); row.append(name, value);
      return row;
    }));
    tip.className = chart.closest('.levels') ? 'levels' : '';
    tip.style.display = 'block';
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + 'px';
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + 'px';
  });
  chart.addEventListener('pointerleave', () => tip.style.display = 'none');
}
"""


_DOCUMENT = Markup(
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    'content="width=device-width, initial-scale=1">'
    "<title>{}</title><style>{}</style></head>\n<body><main>{}</main><script>{}</script></body></html>\n"
)


def page(title: str, body: Markup) -> Markup:
    """A whole document around `body`."""
    return _DOCUMENT.format(title, Markup(CSS), body, Markup(JS))
