/** The panel's looks: OHIF's own colours (its CSS variables) and sizes. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  sliceprop.STYLE = `
    div:has(> .labelprop-panel) {
      width: var(--labelprop-width, 304px) !important;
      max-width: var(--labelprop-width, 304px) !important;
      transition: none !important;
    }
    .labelprop-panel {
      position: relative; display: flex; flex-direction: column; flex: 1; min-height: 0; width: 100%;
      background: hsl(var(--background)); color: hsl(var(--foreground)); font-size: 13px; line-height: 1.35;
    }
    .labelprop-scroll { flex: 1; min-height: 0; overflow-y: auto; scrollbar-width: thin; scrollbar-color: #2b3a68 transparent; }
    .labelprop-resize {
      position: absolute; left: -5px; top: -44px; bottom: 0; width: 6px; cursor: ew-resize; z-index: 5;
    }
    .labelprop-resize:hover, .labelprop-resize:active { background: hsl(var(--highlight) / .5); }
    .labelprop-panel section { border-bottom: 2px solid #000; }
    .labelprop-panel h2 {
      display: flex; align-items: center; gap: 6px; height: 28px; padding: 0 8px; font-size: 13px;
      background: hsl(var(--popover)); color: hsl(var(--muted-foreground)); user-select: none;
    }
    .labelprop-panel h2 > :first-child { flex: 1; }
    .labelprop-body { padding: 8px; display: flex; flex-direction: column; gap: 8px; background: hsl(var(--card)); }
    .labelprop-row { display: flex; align-items: center; gap: 6px; }
    .labelprop-row > .grow { flex: 1 1 0; min-width: 0; }
    .labelprop-panel button {
      display: inline-flex; align-items: center; justify-content: center; gap: 6px; min-height: 28px; padding: 2px 10px;
      border: 1px solid transparent; border-radius: 4px; color: hsl(var(--foreground)); background: hsl(var(--accent));
      white-space: nowrap; transition: background .1s;
    }
    .labelprop-panel button:hover:not(:disabled) { background: hsl(var(--primary) / .45); }
    .labelprop-panel button:focus-visible, .labelprop-panel input:focus-visible { outline: 2px solid hsl(var(--highlight)); outline-offset: 1px; }
    .labelprop-panel button:disabled { opacity: .4; cursor: default; }
    .labelprop-panel button.primary { background: hsl(var(--primary) / .85); font-weight: 500; }
    .labelprop-panel button.primary:hover:not(:disabled) { background: hsl(var(--primary)); }
    .labelprop-panel button.plain { background: transparent; color: hsl(var(--highlight)); padding: 2px 6px; }
    .labelprop-panel button.plain:hover:not(:disabled) { background: hsl(var(--accent)); }
    .labelprop-panel button[aria-pressed=true] { background: hsl(var(--highlight)); color: #000; }
    .labelprop-panel button[aria-pressed=true]:hover:not(:disabled) { background: hsl(var(--highlight) / .85); }
    .labelprop-panel button.icon { width: 28px; padding: 0; }
    .labelprop-panel svg { width: 18px; height: 18px; fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round; flex: none; }
    .labelprop-tools { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; }
    .labelprop-tools button { flex-direction: column; gap: 2px; padding: 5px 2px 4px; font-size: 11px; }
    .labelprop-hint { color: hsl(var(--muted-foreground)); font-size: 12px; }
    .labelprop-number { font-variant-numeric: tabular-nums; }
    .labelprop-labels { display: flex; flex-direction: column; max-height: 242px; overflow-y: auto; scrollbar-width: thin; }
    .labelprop-labels > * { flex: none; }
    .labelprop-label { display: flex; align-items: center; gap: 8px; height: 30px; padding: 0 4px; border-radius: 4px; cursor: pointer; }
    .labelprop-label:hover { background: hsl(var(--accent) / .5); }
    .labelprop-label.active { background: hsl(var(--accent)); }
    .labelprop-label .name { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .labelprop-label button { visibility: hidden; }
    .labelprop-label:hover button, .labelprop-label:focus-within button { visibility: visible; }
    .labelprop-panel input[type=color] { width: 18px; height: 18px; padding: 0; border: 0; border-radius: 3px; background: none; cursor: pointer; flex: none; }
    .labelprop-panel input[type=color]::-webkit-color-swatch-wrapper { padding: 0; }
    .labelprop-panel input[type=color]::-webkit-color-swatch { border: 0; border-radius: 3px; }
    .labelprop-panel input[type=text] {
      flex: 1; min-width: 0; height: 26px; padding: 0 6px; border: 1px solid hsl(var(--input)); border-radius: 4px;
      background: hsl(var(--background)); color: hsl(var(--foreground));
    }
    .labelprop-panel input[type=range] { -webkit-appearance: none; appearance: none; flex: 1; min-width: 0; height: 18px; background: transparent; cursor: pointer; }
    .labelprop-panel input[type=range]::-webkit-slider-runnable-track { height: 4px; border-radius: 2px; background: hsl(var(--input)); }
    .labelprop-panel input[type=range]::-moz-range-track { height: 4px; border-radius: 2px; background: hsl(var(--input)); }
    .labelprop-panel input[type=range]::-webkit-slider-thumb { -webkit-appearance: none; width: 14px; height: 14px; margin-top: -5px; border-radius: 50%; background: hsl(var(--highlight)); }
    .labelprop-panel input[type=range]::-moz-range-thumb { width: 14px; height: 14px; border: 0; border-radius: 50%; background: hsl(var(--highlight)); }
    .labelprop-quality { display: flex; align-items: center; gap: 6px; width: 84px; justify-content: flex-end; }
    .labelprop-meter { position: relative; flex: 1; height: 4px; border-radius: 2px; background: hsl(var(--input)); overflow: hidden; }
    .labelprop-meter > i { position: absolute; inset: 0 auto 0 0; background: hsl(var(--highlight)); transition: width .3s; }
    .labelprop-slices { display: flex; flex-wrap: wrap; gap: 4px; max-height: 118px; overflow-y: auto; }
    .labelprop-panel .labelprop-slices button { min-width: 30px; min-height: 24px; padding: 0 6px; font-size: 12px; border-color: transparent; }
    .labelprop-panel .labelprop-slices button.unfinished { background: transparent; border: 1px dashed hsl(var(--muted-foreground)); }
    .labelprop-panel .labelprop-slices button.unsaved::after { content: ''; width: 5px; height: 5px; border-radius: 50%; background: #ffd452; }
    .labelprop-panel .labelprop-slices button.current { border-color: hsl(var(--highlight)); }
    .labelprop-card { display: flex; flex-direction: column; gap: 6px; }
    .labelprop-stop { display: flex; align-items: center; gap: 6px; color: #5fd38a; font-weight: 500; }
    .labelprop-notice { display: flex; align-items: flex-start; gap: 8px; padding: 8px; font-size: 12px; border-top: 2px solid #000; border-left: 3px solid hsl(var(--primary)); background: hsl(var(--popover)); }
    .labelprop-notice > .text { flex: 1; overflow-wrap: anywhere; }
    .labelprop-notice.error { border-left-color: #f2545b; }
    .labelprop-notice.warning { border-left-color: #ffd452; }
    .labelprop-notice.success { border-left-color: #5fd38a; }
    .labelprop-notice button { min-height: 22px; padding: 0 6px; }
    .labelprop-busy { height: 2px; background: transparent; overflow: hidden; flex: none; }
    .labelprop-busy.on { background: linear-gradient(90deg, transparent, hsl(var(--highlight)), transparent) 0 0 / 40% 100% no-repeat; animation: labelprop-busy 1.2s linear infinite; }
    @keyframes labelprop-busy { from { background-position: -40% 0; } to { background-position: 140% 0; } }
  `;
})();
