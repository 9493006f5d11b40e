declare module 'millgate:stage/context@0.1.0' {
  /**
   * # Variants
   * 
   * ## `"input"`
   * 
   * ## `"output"`
   * 
   * ## `"dataset"`
   */
  export type Direction = 'input' | 'output' | 'dataset';
  
  export class Context implements Disposable {
    /**
     * This type does not have a public constructor.
     */
    private constructor();
    traceId(): string;
    tenant(): string;
    model(): string;
    stage(): string;
    direction(): Direction;
    role(): string;
    language(): string;
    nowMs(): bigint;
    seed(): bigint;
    [Symbol.dispose](): void;
  }
}
