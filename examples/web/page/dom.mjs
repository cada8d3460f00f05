// Elements of the page, and numbers as the page writes them.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** An integer in groups of three digits. */
export const grouped = (number) => Math.round(number).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** A share of 1 in percent. Shares close to 0 and to 1 have a decimal. */
export const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0995 ? 1 : 0)}\u202f%`;
