declare module 'millgate:stage/types@0.1.0' {
  /**
   * # Variants
   * 
   * ## `"invalid-config"`
   * 
   * ## `"invalid-input"`
   * 
   * ## `"denied"`
   * 
   * ## `"unavailable"`
   * 
   * ## `"internal"`
   */
  export type ErrorKind = 'invalid-config' | 'invalid-input' | 'denied' | 'unavailable' | 'internal';
  export interface StageError {
    kind: ErrorKind,
    code: string,
    message: string,
  }
  export interface Span {
    start: number,
    end: number,
  }
  export interface Finding {
    rule: string,
    span?: Span,
    score: number,
    explanation: string,
  }
  export interface Label {
    name: string,
    value: string,
  }
  export interface Measure {
    name: string,
    value: number,
  }
}
