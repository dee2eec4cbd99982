"""The style sheet of report.html."""

STYLE = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5c6670;--rule:#e3e6ea;--c0:#2563eb;--c1:#d9730d;--c2:#0f8a5f;--c3:#8b3fc7}
@media(prefers-color-scheme:dark){:root{--bg:#121417;--card:#1b1e23;--ink:#e8eaed;--soft:#9aa4af;--rule:#2e333a;
--c0:#6ea8fe;--c1:#f2a65a;--c2:#58c99a;--c3:#c793f2}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1200px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{margin:0 0 12px;font-size:26px;font-weight:650;overflow-wrap:anywhere}
h2{margin:0 0 12px;font-size:14px;font-weight:600;color:var(--soft)}
dl{display:flex;flex-wrap:wrap;gap:8px 36px;margin:0 0 22px}
dt{font-size:12px;color:var(--soft)}
dd{margin:0;font-size:19px;font-weight:600;font-variant-numeric:tabular-nums}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px;padding-bottom:40px}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px 18px;min-width:0}
section.wide{grid-column:1/-1}
p{margin:0 0 12px;color:var(--soft)}
figure{margin:0;min-width:0}
figcaption{font-size:12px;color:var(--soft);margin-top:4px}
img{max-width:100%;height:auto;display:block;border-radius:4px}
.sheet{overflow-x:auto}
.history{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:14px;margin-top:18px}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule)}
.axis{stroke:var(--soft)}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
polyline.c0{stroke:var(--c0)}polyline.c1{stroke:var(--c1)}polyline.c2{stroke:var(--c2)}polyline.c3{stroke:var(--c3)}
circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}
.faint,.key.faint::before{opacity:.35}
.key.faint{opacity:1}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:12px;color:var(--soft);min-height:18px}
.key::before{content:"";display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle;background:var(--c0)}
.key.c1::before{background:var(--c1)}.key.c2::before{background:var(--c2)}.key.c3::before{background:var(--c3)}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;vertical-align:top;padding:4px 10px 4px 0;border-top:1px solid var(--rule);overflow-wrap:anywhere}
tr:first-child>*{border-top:0}
th{font-weight:500;color:var(--soft);width:38%}
.scores td{font-variant-numeric:tabular-nums}
.scores thead>tr>*{color:var(--soft);font-weight:500}
.next{list-style:none;margin:0;padding:0;display:grid;gap:10px;color:var(--soft)}
code{display:block;margin-top:2px;padding:8px 10px;border-radius:6px;background:var(--bg);color:var(--ink);
font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere;user-select:all}
"""
