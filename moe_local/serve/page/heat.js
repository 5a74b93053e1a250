// Where each expert is and how much it was used lately: what the heat map and the table show.

const HALF_LIFE = 5; // seconds until a use counts half

export class Heat {
  frame = null;
  columns = 0; // experts of the greatest layer
  recent = new Float32Array(0); // uses of [layer * columns + expert], each counting less as it ages
  uses = new Float64Array(0); // since the page was opened

  take(frame) {
    const columns = Math.max(...frame.experts);
    if (columns * frame.layers !== this.recent.length) this.#begin(frame.layers, columns);
    const age = this.frame ? Math.max(0, frame.time - this.frame.time) : 0;
    const fade = 0.5 ** (age / HALF_LIFE);
    for (let cell = 0; cell < this.recent.length; cell += 1) this.recent[cell] *= fade;
    frame.used.forEach((pairs, layer) => {
      for (const [expert, tokens] of pairs) this.#add(layer * columns + expert, tokens);
    });
    this.frame = frame;
  }

  #begin(layers, columns) {
    this.columns = columns;
    this.recent = new Float32Array(layers * columns);
    this.uses = new Float64Array(layers * columns);
  }

  #add(cell, tokens) {
    this.recent[cell] += tokens;
    this.uses[cell] += tokens;
  }

  /** The cells of a layer, [first, end). */
  cellsOf(layer) {
    const first = layer * this.columns;
    return [first, first + this.frame.experts[layer]];
  }
}
