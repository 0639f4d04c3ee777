"""The look of a report: one self-contained style sheet, light or dark as the reader's screen is."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #1f2328; --soft: #5d6570; --line: #e3e0da; --code: #f3f1ec;
  --s0: #1f4e8c; --s1: #6ea6cf; --s2: #66a877; --s3: #d7953f; --s4: #9a86c4; --s5: #b5606a; --warn: #9a5b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1c1f23; --ink: #e4e6e9; --soft: #9aa3ad; --line: #30343a; --code: #22262b;
    --s0: #8ab8f0; --s1: #5088b0; --s2: #6fb283; --s3: #d9a055; --s4: #a996d6; --s5: #d07f88; --warn: #e0a95c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; overflow-wrap: anywhere; }
header { padding-top: 2.5rem; }
.over { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .04em; }
h1 { margin: .1rem 0 .6rem; font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; }
h2 { margin: 0 0 .9rem; font-size: 1.3rem; line-height: 1.3; font-weight: 620; }
h3 { margin: 0 0 .35rem; font-size: .9rem; font-weight: 600; }
p { margin: 0 0 .8rem; max-width: 44rem; }
a { color: var(--s0); text-underline-offset: .15em; }
section { padding: 1.9rem 0 .6rem; border-top: 1px solid var(--line); margin-top: 1.6rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0 0;
  padding: 0; }
.tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: .55rem; padding: .65rem .85rem; }
.tiles dt { color: var(--soft); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tiles dd small { display: block; color: var(--soft); font-size: .78rem; font-weight: 400; }
nav { margin-top: 1.3rem; font-size: .92rem; }
nav ol { display: flex; flex-wrap: wrap; gap: .15rem 1.2rem; margin: 0; padding: 0; list-style: none; }
figure { margin: 0 0 1.2rem; }
figcaption { color: var(--soft); font-size: .86rem; line-height: 1.5; margin-top: .6rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom-color: var(--soft); }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; }
.word { text-align: left; }
.plain td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.plain .word { white-space: nowrap; color: var(--soft); }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .name { fill: var(--ink); font-weight: 550; }
.chart .epoch { font-size: 11px; opacity: .8; }
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.curve.bold { stroke-width: 2.4; }
.curve.faint { stroke-width: 1; opacity: .28; }
.curve.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
.dot { fill: currentColor; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); } .ink { color: var(--soft); }
.narrow { display: none; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  margin-top: .6rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .3rem 0 .8rem; padding: 0; list-style: none;
  font-size: .86rem; }
.swatch { display: inline-block; width: 1.5rem; border-top: .18rem solid currentColor; margin-right: .5rem;
  vertical-align: .25rem; }
.swatch.bold { border-top-width: .25rem; }
.swatch.dashed { border-top-style: dashed; border-top-width: .12rem; }
img { image-rendering: pixelated; border-radius: .2rem; max-width: 100%; }
.row { display: flex; flex-wrap: wrap; gap: .3rem; }
.row img { display: block; }
.classes { display: grid; grid-template-columns: 1fr; gap: .45rem; }
.named { display: grid; grid-template-columns: 8.5rem 1fr; align-items: center; }
.named h3 { margin: 0 1rem 0 0; display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical;
  overflow: hidden; }
.ruled > div { border-bottom: 1px solid var(--line); padding-bottom: .7rem; }
.groups { gap: .3rem 1.8rem; }
.name { margin: 0 0 .2rem; color: var(--soft); font-size: .8rem; }
.tile span { display: block; color: var(--soft); font-size: .76rem; text-align: center;
  font-variant-numeric: tabular-nums; }
.paper { background: #fff; border: 1px solid var(--line); border-radius: .55rem; padding: .4rem; margin: 0; }
.strip { display: block; height: auto; image-rendering: auto; margin: 0 auto; }
.strip.large { min-width: 44rem; }
.missing { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .9rem; margin: 0 0 1rem; color: var(--soft); }
.missing p { margin: 0 0 .4rem; }
.warning { color: var(--warn); }
pre { background: var(--code); border-radius: .4rem; padding: .6rem .8rem; margin: 0 0 .9rem; overflow-x: auto;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; color: var(--ink); }
details { margin: 0 0 1rem; }
summary { cursor: pointer; font-size: .92rem; margin-bottom: .4rem; }
.columns { columns: 20rem; column-gap: 2rem; }
.columns details { break-inside: avoid; }
footer { color: var(--soft); font-size: .84rem; padding-top: 1.4rem; padding-bottom: 3rem; }
:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.6rem; }
  main, header, footer { padding-left: 1rem; padding-right: 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .named { grid-template-columns: 1fr; gap: .25rem; }
  .wide { display: none; }
  .narrow { display: block; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { :root { color-scheme: light; } section { break-inside: avoid-page; } nav { display: none; } }
"""
